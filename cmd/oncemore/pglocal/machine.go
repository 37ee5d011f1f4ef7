package pglocal

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// ErrNoBinaries says that no PostgreSQL server is installed, and what to do.
var ErrNoBinaries = errors.New("no PostgreSQL server binaries found. As root, run: apt-get install -y postgresql " +
	"(or name the folder of initdb and postgres in PGBIN)")

var serverFolders = []string{
	"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin",
	"/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin",
}

// FindBin returns the folder that holds initdb and postgres: the one that PGBIN
// names, else the newest version in the folders of Debian, Red Hat and Homebrew,
// else what PATH finds. The error is [ErrNoBinaries] when there is none.
func FindBin() (string, error) {
	if dir := os.Getenv("PGBIN"); dir != "" {
		if !complete(dir) {
			return "", fmt.Errorf("PGBIN names %s, where initdb and postgres are not", dir)
		}
		return dir, nil
	}
	var dirs []string
	for _, pattern := range serverFolders {
		found, _ := filepath.Glob(pattern) // fails only for a bad pattern
		dirs = append(dirs, found...)
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return major(b) - major(a) })
	if p, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(p))
	}
	if i := slices.IndexFunc(dirs, complete); i >= 0 {
		return dirs[i], nil
	}
	return "", ErrNoBinaries
}

func complete(dir string) bool {
	return executable(filepath.Join(dir, "initdb")) && executable(filepath.Join(dir, "postgres"))
}

func executable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// major is the last number in a path, which in these folders is the version.
func major(dir string) (n int) {
	for _, digits := range strings.FieldsFunc(dir, func(r rune) bool { return r < '0' || r > '9' }) {
		n, _ = strconv.Atoi(digits)
	}
	return n
}

// credential tells whom the server runs as: nil for a normal user, since it then
// runs as that user.
func credential() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("the server refuses to run as root, and there is neither a user postgres nor a user nobody")
}

// enterable tells whether the server's user can reach dir, and if not, in words
// that initdb's "permission denied" does not have.
func enterable(dir string, cred *syscall.Credential) error {
	for d := dir; ; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if ok && st.Uid != cred.Uid && st.Gid != cred.Gid && fi.Mode()&0o001 == 0 {
			return fmt.Errorf("root hands the server to another user (uid %d), who may not enter %s; choose a folder elsewhere, such as /var/lib/oncemore", cred.Uid, d)
		}
		if d == filepath.Dir(d) {
			return nil
		}
	}
}
