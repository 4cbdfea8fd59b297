from tcpcore.cli import main

main()
