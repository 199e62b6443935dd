"""What ``deploy/`` promises, on a Debian of its own: the image, and the unit under systemd.

    ./run deployed          # both
    ./run deployed image    # build the image, and serve from it as compose.yaml says
    ./run deployed unit     # install as the unit's head says, and boot a machine with it

It needs root, the programs that ``debian.PROGRAMS`` names, and the network that pip needs. The
machine is emulated, so that KVM is not needed: a minute or two.
"""
