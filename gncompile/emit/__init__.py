"""From programs to something that runs: expressions, the reference interpreter, torch source."""
