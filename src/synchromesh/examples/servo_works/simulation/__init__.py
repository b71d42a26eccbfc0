"""The simulation of servo-works: universes of faults, each decided by its seed.

python -m synchromesh.examples.servo_works.simulation --seed 0 --count 100
"""
