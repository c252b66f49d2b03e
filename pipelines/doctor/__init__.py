"""What is wrong with this machine, and with what it is connected to; `pipelines.doctor.checks` lists the checks."""
