"""The run-time checker of signatures: beartype, for which a whole number is a float too, as PEP 484 has it (``temperature: 4``)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
