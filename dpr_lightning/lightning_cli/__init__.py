"""``dpr fit|validate|test|predict``: LightningCLI with checks before the first step, resuming, and plain errors."""

LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")
