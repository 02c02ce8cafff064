//go:build !race

package overload

const raced = false
