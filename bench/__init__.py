"""What tracing costs, beside libbpf-tools' tcpstates: `python -m bench` as root.

Traffic goes to loopback only. Nothing stays behind but a table on standard output.
"""
