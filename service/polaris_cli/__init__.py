"""The program `polaris`: the command line, and `polaris up`. The only package that imports both sides."""
