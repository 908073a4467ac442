//go:build tools

// Package tools names the programs whose modules go.mod lists.
package tools

import (
	_ "github.com/cilium/cilium/hubble"
	_ "github.com/cilium/cilium/hubble-relay"
)
