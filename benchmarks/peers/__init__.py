"""Other runtimes of BGE-M3, each in its own environment, behind one small protocol.

contenders.py    who takes part, and how
environments.py  a virtual environment for each requirements file, NAME.txt
process.py       the driver's end of a worker
worker.py        the worker's end; numpy and the standard library alone
FAMILY.py        one worker for each library; none but ours.py imports m3rt
"""
