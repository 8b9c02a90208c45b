"""What can be measured; each module is one command of ``python -m bench``."""
