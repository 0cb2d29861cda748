"""What a setting names: things of ours, of installed packages, and of import paths; their options; files that a name stands for."""
