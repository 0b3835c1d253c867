//go:build tools

// Package tools holds the commands of Prometheus; tests/observe/prometheus.py builds them.
package tools

import (
	_ "github.com/prometheus/prometheus/cmd/prometheus"
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
