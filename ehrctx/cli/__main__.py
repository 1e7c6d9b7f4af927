"""`python -m ehrctx.cli`: the console command, where it is not on the PATH."""

from ehrctx.cli import main

main()
