"""What checks annotations at run time in the tests: beartype, taking an int where a float is asked as Python does."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
