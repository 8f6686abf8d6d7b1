"""The words of the command line, grouped by what they are about. `ops.cli` knows each word and loads its module when it is called."""
