package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// A brush is what a plot is drawn with.
type brush struct {
	width  int
	full   string   // a whole cell of a bar
	parts  []string // of a cell, in ascending order
	open   string   // a cell of a bar that may still grow
	shades []string // from nothing to the most
}

var (
	blocks = brush{full: "█", parts: []string{"▏", "▎", "▍", "▌", "▋", "▊", "▉"}, open: "░", shades: []string{" ", "░", "▒", "▓", "█"}}
	ascii  = brush{full: "#", open: ":", shades: []string{" ", ".", ":", "+", "*", "#", "@"}}
)

// brushFor is made of block characters as wide as the terminal, or, where w is none, of
// ASCII and 80 wide.
func brushFor(w io.Writer) brush {
	if !isTerminal(w) {
		b := ascii
		b.width = 80
		return b
	}
	b := blocks
	b.width = 80
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			b.width = width
		}
	}
	return b
}

func plotStats(w io.Writer, s *admin.Stats) error {
	b := brushFor(w)
	paint := func(text string) string { return painted(w, green, text) }
	var lines []string
	if s.By == admin.ByWeekdayHour {
		lines = heat(s, b, paint)
	} else {
		lines = bars(s, b, paint)
	}
	_, err := io.WriteString(w, strings.Join(lines, "\n")+"\n")
	return err
}

// bars draws a line for each bucket, the longest as wide as there is room.
func bars(s *admin.Stats, b brush, paint func(string) string) (lines []string) {
	most, labels, numbers := int64(1), 0, 0
	for i := range s.Buckets {
		bucket := &s.Buckets[i]
		most = max(most, bucket.Done)
		labels = max(labels, len(label(s, bucket)))
		numbers = max(numbers, len(doneCell(s, bucket)))
	}
	room := max(1, b.width-labels-numbers-3) // the last column is left free: some terminals wrap there
	for i := range s.Buckets {
		bucket := &s.Buckets[i]
		line := fmt.Sprintf("%-*s %*s ", labels, label(s, bucket), numbers, doneCell(s, bucket))
		if bar := b.bar(bucket.Done, most, room, bucket.Open); bar != "" {
			line += paint(bar)
		}
		lines = append(lines, strings.TrimRight(line, " "))
	}
	return lines
}

// bar is n of most in so many cells. What is not nothing shows.
func (b brush) bar(n, most int64, cells int, open bool) string {
	if n == 0 {
		return ""
	}
	steps := len(b.parts) + 1
	eighths := max(1, int(float64(n)/float64(most)*float64(cells*steps)+0.5))
	whole, part := eighths/steps, eighths%steps
	if open {
		return strings.Repeat(b.open, max(1, whole))
	}
	bar := strings.Repeat(b.full, whole)
	if part > 0 {
		bar += b.parts[part-1]
	}
	return bar
}

// heat draws the week, a line for each day and a column for each hour.
func heat(s *admin.Stats, b brush, paint func(string) string) (lines []string) {
	wide := min(4, max(1, (b.width-5)/24)) // columns of an hour
	head := "    "
	for hour := 0; hour < 24; {
		text := fmt.Sprintf("%02d", hour)
		hours := (utf8.RuneCountInString(text) + wide) / wide // that the text and a blank need
		head += text + strings.Repeat(" ", hours*wide-len(text))
		hour += hours
	}
	lines = append(lines, strings.TrimRight(head, " "))
	most := 0.0
	for i := range s.Buckets {
		most = max(most, s.Buckets[i].Mean())
	}
	for day := range 7 {
		line := ""
		for hour := range 24 {
			line += strings.Repeat(b.shade(s.Buckets[24*day+hour].Mean(), most), wide)
		}
		line = strings.TrimRight(line, " ")
		if line != "" {
			line = " " + paint(line)
		}
		lines = append(lines, week[day].String()[:3]+line)
	}
	top := len(b.shades) - 1
	scale := "    an hour:"
	for i, shade := range b.shades[1:] {
		scale += fmt.Sprintf("  %s to %s", strings.Repeat(shade, 2), aDay(most*float64(i+1)/float64(top)))
	}
	if most > 0 {
		lines = append(lines, scale)
	}
	return lines
}

// shade is that of n among shades of equal steps; what is not nothing shows.
func (b brush) shade(n, most float64) string {
	if n == 0 {
		return b.shades[0]
	}
	top := len(b.shades) - 1
	return b.shades[min(top, max(1, int(n/most*float64(top)+0.999999)))]
}
