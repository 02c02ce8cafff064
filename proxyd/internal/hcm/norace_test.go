//go:build !race

package hcm

const raced = false
