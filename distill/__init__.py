"""Distillation: students trained on the targets of a store, without images or teacher."""
