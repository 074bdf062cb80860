"""The command line: one file per command. Importing it loads neither torch nor diffusers."""
