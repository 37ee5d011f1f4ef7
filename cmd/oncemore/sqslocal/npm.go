package sqslocal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Install installs a program in JavaScript, with the packages that its lock file names, into
// a folder of the user's cache, unless it is there, and returns the folder. Another content
// of the files is another folder. Several processes may call it at once.
func Install(ctx context.Context, name string, files fs.FS) (dir string, err error) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("%s is not installed (Debian: apt-get install nodejs npm)", program)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	digest, err := digestOf(files)
	if err != nil {
		return "", err
	}
	parent := filepath.Join(cache, "oncemore", name)
	dir = filepath.Join(parent, digest)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	done := filepath.Join(dir, "installed")
	if _, err := os.Stat(done); err == nil {
		return dir, nil
	}
	if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, files)); err != nil {
		return "", err
	}
	npm := exec.CommandContext(ctx, "npm", "ci", "--silent", "--omit=dev", "--ignore-scripts")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci in %s: %w: %s", dir, err, bytes.TrimSpace(out))
	}
	return dir, os.WriteFile(done, nil, 0o644)
}

func digestOf(files fs.FS) (string, error) {
	digest := sha256.New()
	err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, path)
		fmt.Fprintf(digest, "%s %d\n%s", path, len(text), text)
		return err
	})
	return fmt.Sprintf("%x", digest.Sum(nil)[:8]), err
}
