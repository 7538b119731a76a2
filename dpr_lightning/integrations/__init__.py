"""The dense reward in other trainers: TRL, verl, OpenRLHF. Nothing here needs them to be installed."""
