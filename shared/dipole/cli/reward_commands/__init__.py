"""The commands of `dipole rewards` that need our other packages: serving a reward, and verifying one."""
