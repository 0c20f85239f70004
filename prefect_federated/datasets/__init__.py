"""A site's datasets: named in the site's own `datasets.yaml`, read in chunks, never sent anywhere."""
