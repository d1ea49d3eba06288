"""The world, the verifiers, the stages and the recipes: what makes the model."""
