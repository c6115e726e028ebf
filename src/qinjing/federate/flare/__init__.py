"""The same federation between machines: NVFlare's cells under mutual TLS carry the bytes.

Of NVFlare its messaging is used, not its jobs: a job's sites are fixed when it is deployed, so that
none could come late or come back, and a job names classes to be built at the sites. Here a site
runs nothing that was sent to it. What it is asked for are the verbs of `site.Site`, and nothing
else has a receiver.
"""
