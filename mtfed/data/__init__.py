"""The data of sites: from files in a folder to batches of tensors.

:mod:`.manifest` reads a site's rows, :mod:`.partition` and :mod:`.simulated_sites` divide a set among simulated sites,
:mod:`.formats` reads files, :mod:`.source` places an image and its labels in the model's square or cube,
:mod:`.decoding` and :mod:`.cache` decode a site once into a :mod:`.store`, and :mod:`.shard` makes batches from it.
"""
