"""What the simulated model answers: every rule, in the order in which they are asked.

Not a language model: each rule knows the requests of its pattern and says something plausible about them. It
stands in the file of `graphs/simulated/` that its subject belongs to.
"""

from graphs.simulated import claims, coding, insurer, services, texts

rules = [*coding.rules, *services.rules, *claims.rules, *insurer.rules, *texts.rules]
