//go:build linux

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// A disk is a small file system of its own, with a ballast that can be dropped to make
// room again, as an operator does.
type disk string

// newDisk makes a disk of so many megabytes, in memory, under a folder of ours.
func newDisk(t *testing.T, folder string, megabytes int) disk {
	t.Helper()
	dir := filepath.Join(folder, diskName)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0755", megabytes)); err != nil {
		lacking(t, "a small disk cannot be mounted: %v (that takes root)", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return disk(dir)
}

func (d disk) ballast() string { return filepath.Join(string(d), "ballast") }

// squeeze leaves so many kilobytes free.
func (d disk) squeeze(t *testing.T, kilobytes int) {
	t.Helper()
	size := d.free(t) - int64(kilobytes)<<10
	if size <= 0 {
		t.Fatalf("only %d bytes are free", d.free(t))
	}
	f, err := os.Create(d.ballast())
	if err == nil {
		err = errors.Join(syscall.Fallocate(int(f.Fd()), 0, 0, size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// cram leaves nothing free.
func (d disk) cram(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(d.ballast(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	end, err := f.Seek(0, io.SeekEnd)
	for free := d.free(t); err == nil && free > 0; free = d.free(t) {
		if err = syscall.Fallocate(int(f.Fd()), 0, end, free); errors.Is(err, syscall.ENOSPC) {
			err = nil // a table was faster
			continue
		}
		end += free
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func (d disk) makeRoom(t *testing.T) {
	t.Helper()
	if err := os.Remove(d.ballast()); err != nil {
		t.Fatal(err)
	}
}

func (d disk) free(t *testing.T) int64 {
	t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(string(d), &s); err != nil {
		t.Fatal(err)
	}
	return int64(s.Bavail) * s.Bsize
}

// fill sends packs of works, whether they are refused or not, until the disk is as full as it
// shall be, and remembers those that the database accepted. It returns the number of the next.
func (l load) fill(t *testing.T, pool *pgxpool.Pool, from, fat int, full func(error) bool) (next int) {
	t.Helper()
	q := pgqueue.New(pool, "")
	rnd := random(t)
	for n := from; n < from+100_000; n += 10 {
		jobType := allTypes[rnd.IntN(len(allTypes))]
		ws := numbers(n, n+9)
		for i := range ws {
			ws[i].Fat = noise(rnd.Uint64, fat)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := q.Send(ctx, message(t, jobType, ws...))
		cancel()
		if err == nil {
			l.add(t, jobType, ws...)
		}
		if full(err) {
			// Where only the answer was lost these are done as well; but nobody was promised that.
			t.Logf("when %d were sent: %v", len(l), err)
			return n + 10
		}
	}
	t.Fatal("the disk does not fill up")
	panic("unreachable")
}

// noise is text that does not compress.
func noise(random func() uint64, n int) string {
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "%016x", random())
	}
	return b.String()[:n]
}

// No table can grow any more. Statements fail, the server goes on.
func TestI1NoLossWhenTheDiskOfTheTablesIsFull(t *testing.T) {
	t.Parallel()
	d := newDisk(t, newFolder(t), 40)
	s := newServer(t, newFolder(t))
	space := filepath.Join(string(d), "tables")
	ownAs(t, s.dataFolder(), space)
	mustExec(t, s.pool, `CREATE TABLESPACE small LOCATION '`+space+`'`)
	mustExec(t, s.pool, `CREATE DATABASE small TABLESPACE small`)
	dsn := inDatabase(t, s.DSN, "small")
	pool := openPool(t, dsn)
	migrate(t, pool)
	d.squeeze(t, 3<<10)

	w := newWorld(t)
	l := load{}
	ps := service{Database: dsn, World: w, Pause: 10 * time.Millisecond, Lease: 2 * time.Second}.fleet(t, pool, 2)
	next := l.fill(t, pool, 1, 2000, func(err error) bool {
		var pg *pgconn.PgError
		return errors.As(err, &pg) && pg.Code == "53100"
	})
	// The workers feel it later: their tables may have room when the queue's have none. What is
	// thin still fits into the room of messages that are gone; but each fact needs its own.
	d.cram(t)
	l.fill(t, pool, next, 10, func(error) bool { return ps[0].said("53100") || ps[1].said("53100") })
	d.makeRoom(t)

	awaitSettled(t, pool)
	doubts := resolveDoubts(t, pool, w)
	awaitSettled(t, pool)
	stopAll(t, ps...)
	t.Logf("%d were in doubt", doubts)
	checkEnd(t, pool, w, l)
}

// The write-ahead log cannot grow any more: the server panics, and mostly cannot even
// recover. Then somebody makes room, and starts it again where that is needed.
func TestI1NoLossWhenTheDiskOfTheLogIsFullAndPostgresCrashes(t *testing.T) {
	t.Parallel()
	folder := newFolder(t)
	d := newDisk(t, folder, 192) // where the server keeps its data
	s := newServer(t, folder, "min_wal_size=32MB", "max_wal_size=32MB", "wal_recycle=off")
	migrate(t, s.pool)
	d.squeeze(t, 20<<10)

	w := newWorld(t)
	l := load{}
	ps := service{Database: s.DSN, World: w, Pause: 10 * time.Millisecond, Lease: 2 * time.Second}.fleet(t, s.pool, 2)
	l.fill(t, s.pool, 1, 10_000, func(err error) bool {
		log := s.log(t) // it crashes over it
		return err != nil && strings.Contains(log, "PANIC") && strings.Contains(log, "No space left on device")
	})
	d.makeRoom(t)
	// It tries to recover by itself, and gives up if there is no room for that. Its log says when: a
	// session may still answer for a moment after another one has crashed.
	await(t, "the server is back or gone", func() bool {
		_, runs := s.postmaster(t)
		log := s.log(t)
		return !runs || strings.Contains(log[strings.LastIndex(log, "PANIC"):], "ready to accept connections")
	})
	if _, runs := s.postmaster(t); !runs {
		s.start(t)
	} else {
		s.pool.Reset() // its connections are broken
	}

	awaitSettled(t, s.pool)
	doubts := resolveDoubts(t, s.pool, w)
	awaitSettled(t, s.pool)
	stopAll(t, ps...)
	t.Logf("%d were in doubt", doubts)
	checkEnd(t, s.pool, w, l)
}

// ownAs makes a folder that belongs to whom another one belongs to.
func ownAs(t *testing.T, other, dir string) {
	t.Helper()
	var st syscall.Stat_t
	if err := errors.Join(syscall.Stat(other, &st), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(st.Uid), int(st.Gid)); err != nil {
		t.Fatal(err)
	}
}

func (s *server) dataFolder() string { return filepath.Join(s.options.Dir, "data") }

func inDatabase(t *testing.T, dsn, name string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}
