// Command countries generates lists of countries, in English and in French, as the options of
// an HTML form and as a dictionary in C#. A generated file is an entity, and it is generated
// again when the version of its source has risen: what make does, without clocks.
//
//	go run ./examples/countries
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/text/collate"
	"golang.org/x/text/language"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Generate asks for a file, of the given release of iso-codes or a later one.
type Generate struct {
	Path    string `json:"path"` // …/countries.fr.html
	Release int64  `json:"source_version"`
}

func (Generate) JobType() string        { return "generate_countries" }
func (g Generate) Entity() string       { return g.Path }
func (g Generate) SourceVersion() int64 { return g.Release }

// files are what there is to generate.
var files = []string{"countries.en.html", "countries.fr.html", "Countries.en.cs", "Countries.fr.cs"}

// Jobs are those of this program, on the data of d.
func Jobs(d isoCodes) []jobs.Definition {
	return []jobs.Definition{
		jobs.Job[Generate]{
			Do:     func(_ context.Context, g Generate) error { return generate(d, g) },
			Effect: jobs.Repeatable, // the same file again
		},
	}
}

// generate makes the file from the data as it is now, which may be of a later release than was
// asked for, and not of an earlier one: the fact would say of an old file that it is new.
func generate(d isoCodes, g Generate) error {
	path, parts := g.Path, strings.Split(filepath.Base(g.Path), ".")
	if len(parts) != 3 {
		return jobs.Permanent(fmt.Errorf("%s: a file is called name.language.format", path))
	}
	version, release, err := d.release()
	switch {
	case err != nil:
		return err
	case release < g.Release: // a retry, here or on another machine, finds the data installed
		return fmt.Errorf("%s: release %d of iso-codes is asked for, and %d is installed here", path, g.Release, release)
	}
	list, err := d.countries(parts[1])
	if err != nil {
		return err
	}
	sortByName(list, parts[1])
	var text bytes.Buffer
	format := formats[parts[2]]
	if format == nil {
		return jobs.Permanent(fmt.Errorf("%s: nobody knows this format", path))
	}
	if err := format.Execute(&text, map[string]any{"Version": version, "Language": parts[1], "Countries": list}); err != nil {
		return jobs.Permanent(fmt.Errorf("%s: %w", path, err))
	}
	return replace(path, text.Bytes())
}

// sortByName sorts as a reader looks a name up: Åland and Égypte are where their letters are
// without the accents, and not behind Zimbabwe, where their bytes are.
func sortByName(list []country, in string) {
	c := collate.New(language.Make(in), collate.Loose)
	slices.SortFunc(list, func(a, b country) int {
		if n := c.CompareString(a.Name, b.Name); n != 0 {
			return n
		}
		return strings.Compare(a.Code, b.Code)
	})
}

// replace has the whole file there at one moment: a worker that dies leaves the old one.
func replace(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // which fails when all went well
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync() // the fact is for ever, so the file had better be on the disk
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync() // which has the file's new name
}

var formats = map[string]*template.Template{
	"html": template.Must(template.New("html").Parse(`<!-- generated from iso-codes {{.Version}} -->
{{range .Countries}}<option value="{{html .Code}}">{{html .Name}}</option>
{{end}}`)),
	"cs": template.Must(template.New("cs").Parse(`// Generated from iso-codes {{.Version}}.
using System.Collections.Generic;

public static partial class Countries
{
    public static readonly IReadOnlyDictionary<string, string> {{if eq .Language "fr"}}French{{else}}English{{end}} = new Dictionary<string, string>
    {
{{range .Countries}}        [{{printf "%q" .Code}}] = {{printf "%q" .Name}},
{{end}}    };
}
`)),
}

func main() {
	if len(os.Args) > 1 { // "worker", its name, and the folder of the data: one of the play's
		stage.Main(func(context.Context) error {
			return stage.Work(os.Args[2], worker.Config{}, func(*pgxpool.Pool) []jobs.Definition { return Jobs(isoCodes(os.Args[3])) })
		})
		return
	}
	stage.Play(func(ctx context.Context) (*proof, error) {
		return tell(ctx, stage.Options{Out: os.Stdout, NoSync: true})
	})
}
