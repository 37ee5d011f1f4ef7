//go:build !linux

package pglocal

import "syscall"

// endWithParent does nothing: only Linux ends a child with its parent.
func endWithParent(*syscall.SysProcAttr) {}
