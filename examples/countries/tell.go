package main

import (
	"context"
	"fmt"
	"html"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
)

// A proof is of what the files hold, and of what the ledger says.
type proof struct {
	Countries int // in the data, in the end
	Asked     int // files, all calls together
	Generated int64
	Built     []int    // files that were new after each of the calls
	Held      []int    // entries of each file
	Unsorted  []string // neighbours in the wrong order
	Unlike    []string // files with other codes than the data
	First     []string // French names at the beginning of É
}

func tell(ctx context.Context, o stage.Options) (_ *proof, err error) {
	s, err := stage.Open(ctx, "countries", o)
	defer func() { s.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	installed, err := findISOCodes()
	if err != nil {
		return nil, err
	}
	// A copy, so that a new release can come.
	data, out := isoCodes(filepath.Join(s.Dir, "share")), filepath.Join(s.Dir, "generated")
	if err = data.copyFrom(installed); err == nil {
		err = os.Mkdir(out, 0o755)
	}
	if err != nil {
		return nil, err
	}
	if _, err = s.StartWorker(ctx, string(data)); err != nil {
		return nil, err
	}
	pr := &proof{}
	// call asks for all files, of the release that is there, and says which are new then.
	call := func(release int64) error {
		before := identities(out)
		for _, f := range files {
			if err := jobs.Enqueue(ctx, s.Queue, Generate{filepath.Join(out, f), release}); err != nil {
				return err
			}
			pr.Asked++
		}
		if err := s.Await(ctx, "all is answered", `SELECT count(*) = 0 FROM oncemore.message WHERE type = 'generate_countries'`); err != nil {
			return err
		}
		built := 0
		for f, id := range identities(out) {
			if before[f] == nil || !os.SameFile(before[f], id) {
				built++
			}
		}
		pr.Built = append(pr.Built, built)
		return nil
	}
	version, old, err := data.release()
	if err != nil {
		return nil, err
	}
	for range 2 {
		if err = call(old); err != nil {
			return nil, err
		}
	}
	s.Say("iso-codes %s is there. Called once, %d files are generated; called once more, %d.", version, pr.Built[0], pr.Built[1])

	if err = data.addCountry(old + 1); err != nil {
		return nil, err
	}
	newer, number, err := data.release()
	if err != nil {
		return nil, err
	}
	if err = call(number); err != nil {
		return nil, err
	}
	s.Say("iso-codes %s comes, with one country more. Called again, %d files are generated.", newer, pr.Built[2])
	if err = call(old); err != nil {
		return nil, err
	}
	s.Say("A call from before comes late, for %s: %d files are generated.", version, pr.Built[3])
	if err = pr.look(data, out); err != nil {
		return nil, err
	}
	return pr, s.Count(ctx, []stage.Number{stage.Into(&pr.Generated, completionsSQL, out+"/%")}, nil)
}

// completionsSQL counts the facts, and those that they replaced.
const completionsSQL = `
SELECT (SELECT count(*) FROM oncemore.ledger WHERE job_type = t.id AND entity LIKE $1)
     + (SELECT count(*) FROM oncemore.ledger_history WHERE job_type = t.id AND entity LIKE $1)
FROM oncemore.job_type t WHERE t.name = 'generate_countries'`

// identities are the files in a folder; one that was replaced is another file.
func identities(dir string) map[string]os.FileInfo {
	is := map[string]os.FileInfo{}
	for _, f := range files {
		if info, err := os.Stat(filepath.Join(dir, f)); err == nil {
			is[f] = info
		}
	}
	return is
}

var entry = regexp.MustCompile(`(?m)^(?:<option value="|        \[")(..)(?:">|"\] = ")(.*)(?:</option>|",)$`)

// look reads the files, by other means than they were made.
func (p *proof) look(d isoCodes, dir string) error {
	all, err := d.countries("en")
	if err != nil {
		return err
	}
	p.Countries = len(all)
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			return err
		}
		entries := entry.FindAllStringSubmatch(string(text), -1)
		p.Held = append(p.Held, len(entries))
		for i, e := range entries {
			if i > 0 && plain(entries[i-1][2]) > plain(e[2]) {
				p.Unsorted = append(p.Unsorted, entries[i-1][2]+" < "+e[2]+" in "+f)
			}
			if !slices.ContainsFunc(all, func(c country) bool { return c.Code == e[1] }) {
				p.Unlike = append(p.Unlike, f)
			}
			if f == "countries.fr.html" && strings.HasPrefix(e[2], "É") {
				p.First = append(p.First, html.UnescapeString(entries[i-1][2]), html.UnescapeString(e[2]))
			}
		}
	}
	return nil
}

// plain is a name without its accents.
func plain(name string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Mn, r) {
			return -1
		}
		return unicode.ToLower(r)
	}, norm.NFD.String(name))
}

func (d isoCodes) copyFrom(other isoCodes) error {
	for _, f := range []string{versionFile, countriesFile, frenchFile} {
		text, err := other.read(f)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(string(d), f)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(string(d), f), text, 0o644)
		}
		if err != nil {
			return fmt.Errorf("copy the data: %w", err)
		}
	}
	return nil
}

// addCountry makes a release with one country more, which nobody has translated yet.
func (d isoCodes) addCountry(release int64) error {
	text, err := d.read(countriesFile)
	if err != nil {
		return err
	}
	more := strings.Replace(string(text), "[", `[{"alpha_2": "XE", "name": "Érewhon & Sons"},`, 1)
	if err := os.WriteFile(filepath.Join(string(d), countriesFile), []byte(more), 0o644); err != nil {
		return err
	}
	version := fmt.Sprintf("Version: %d.%d.%d\n", release/1e6, release/1e3%1e3, release%1e3)
	return os.WriteFile(filepath.Join(string(d), versionFile), []byte(version), 0o644)
}

func (p *proof) Write(w io.Writer) {
	fmt.Fprintf(w, "\n  in countries.fr.html: … %s …\n\n", strings.Join(slices.Compact(p.First), ", "))
	fmt.Fprintf(w, "proof: %d files with %d countries each, sorted without accents; asked for %d times, generated %d times\n", len(p.Held), p.Countries, p.Asked, p.Generated)
}

func (p *proof) Check() error {
	var c stage.Check
	c.Is(slices.Equal(p.Built, []int{len(files), 0, len(files), 0}), "of %d files the calls generated %v", len(files), p.Built)
	c.Is(p.Asked == 4*len(files) && p.Generated == int64(2*len(files)), "asked for %d times, generated %d times", p.Asked, p.Generated)
	c.Is(p.Countries > 200 && len(p.Held) == len(files), "there are %d countries, and %d files", p.Countries, len(p.Held))
	for _, n := range p.Held {
		c.Is(n == p.Countries, "a file holds %d of %d countries", n, p.Countries)
	}
	c.Is(len(p.First) > 2, "nothing begins with É")
	c.Is(len(p.Unsorted) == 0, "unsorted: %q", p.Unsorted)
	c.Is(len(p.Unlike) == 0, "files with other countries: %q", p.Unlike)
	return c.Err()
}
