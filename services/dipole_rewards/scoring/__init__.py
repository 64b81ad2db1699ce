"""One plug-in at work: its forwards, batched, off the event loop."""
