"""The words of the command line, grouped by what they are about. Each group ends in functions that `ops.cli` registers."""
