"""Evaluation of students: linear probing, finetuning, robustness, domain generalisation."""
