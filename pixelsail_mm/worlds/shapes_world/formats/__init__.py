"""ShapesWorld in the formats of the public data sets, one writer per format.

A writer is a function ``write(world, root, out, rng)``: ``world`` from :func:`.world.read_world`,
``root`` the folder it was read from (its ``images`` are never copied), ``out`` the folder to write
the format's files into, in the layout its reader expects, and ``rng`` for everything drawn.
"""
