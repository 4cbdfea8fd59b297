"""What each tool costs, beside its original of libbpf-tools: `python -m bench` as root.

Traffic goes to loopback only. Nothing stays behind but a table on standard output.
"""
