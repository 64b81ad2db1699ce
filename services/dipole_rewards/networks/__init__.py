"""What rewards with weights share: files, batches, encoders."""
