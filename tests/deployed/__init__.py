"""What the documents and ``deploy/`` promise, tried where nothing is installed yet.

    ./run deployed          # all of it:
    ./run deployed readme   # the first steps of README.md, in a new checkout
    ./run deployed image    # build the image, and serve from it as compose.yaml says
    ./run deployed unit     # install as the unit's head says, boot a machine with it, and do
                            # there what the documents tell operators to type

It needs root, the programs that ``debian.PROGRAMS`` names, and the network that pip needs. The
machine is emulated, so that KVM is not needed: a minute or two.
"""
