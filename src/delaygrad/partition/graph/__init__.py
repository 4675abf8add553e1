"""Cut any network: what runs between its blocks as text, the blocks as the user's own modules.

blocks     which modules stay whole
capture    torch.export of the model, each block one opaque call: the glue as a flat graph
liveness   what a later stage still needs at each place where a cut may fall
source     the forward of a stage, as Python text
stage      the nn.Module that runs it
network    all of it: from a model and a sample to stages
"""
