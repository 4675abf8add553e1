"""Cut any network: what runs between its blocks as text, the blocks as the user's own modules.

blocks       which modules stay whole
opaque       while torch.export runs, each call of a block is one operation
capture      what export finds, the glue, as a flat graph
ties         parameters that several stages use
liveness     what a later stage still needs at each place where a cut may fall
source       the forward of a stage, as Python text
stage        the nn.Module that runs it
network      all of it: from a model and a sample to stages
undisturbed  run a model of the user's, and leave it as it was
"""
