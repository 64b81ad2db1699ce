"""From raters' answers to scores, how far raters agree, and how much each one counts: maths without I/O."""
