"""``dpr fit|validate|test|predict``: LightningCLI with checks before the first step, resuming, and plain errors."""
