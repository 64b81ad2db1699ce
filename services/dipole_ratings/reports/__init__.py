"""What the operator is told: figures of the queue, how raters do, and exports of what they said."""
