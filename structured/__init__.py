"""Structured prediction with learned energies, built on `bilevel`.

Nothing is imported here; each module is a part that works alone. From the outside in:

- the command ``structured`` (`structured.cli`) and the classifier (`structured.estimators`);
- comparisons (`structured.experiment`), the trainer (`structured.training`), data
  (`structured.data`), scores (`structured.evaluation`), pictures (`structured.plots`);
- methods, how models are trained (`structured.methods`);
- what they are made of: output spaces (`structured.spaces`), samplers (`structured.sampling`),
  energies (`structured.energies`), inference networks (`structured.networks`), losses
  (`structured.losses`), task costs (`structured.costs`), inference over any energy
  (`structured.inference`), decoders (`structured.decoding`, `structured.joint`), metrics
  (`structured.metrics`).

Two signs hold everywhere: low energies are good, and a cost is at least zero, with zero for a
perfect candidate.
"""
