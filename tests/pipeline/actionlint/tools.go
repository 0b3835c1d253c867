//go:build tools

// Package tools names the programs of others that the tests build, so that go.mod and go.sum pin them.
package tools

import (
	_ "github.com/rhysd/actionlint/cmd/actionlint"
)
