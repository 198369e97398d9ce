"""Single tokens and single experts: what each of them gets."""
