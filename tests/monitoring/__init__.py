"""What Prometheus and Grafana are given, tried as a team would that runs the gateway."""
