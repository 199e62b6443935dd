// One job a line in, one answer a line out; see bench/process_worker.py for the fields.
//
// Go's own decoders and JPEG encoder, with the library imaging between them, as Coves' imageproxy
// has them: cover is Fill, contain is Resize by the width, both Lanczos; the output is JPEG.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"image"
	"image/jpeg"
	_ "image/png"
	"log"
	"os"
	"runtime"
	"syscall"

	"github.com/disintegration/imaging"
)

type job struct {
	Source  string `json:"source"`
	Width   int    `json:"width"`
	Height  int    `json:"height"`
	Fit     string `json:"fit"`
	Quality int    `json:"quality"`
	Result  string `json:"result"`
}

type answer struct {
	CPU   float64 `json:"cpu_ms"`
	Bytes int     `json:"bytes"`
}

func main() {
	runtime.GOMAXPROCS(1)
	lines := bufio.NewScanner(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var wanted job
		check(json.Unmarshal(lines.Bytes(), &wanted))
		data, err := os.ReadFile(wanted.Source)
		check(err)
		before := cpu()
		made := process(data, wanted)
		spent := cpu() - before
		if wanted.Result != "" {
			check(os.WriteFile(wanted.Result, made, 0o644))
		}
		check(answers.Encode(answer{spent, len(made)}))
	}
}

func process(data []byte, wanted job) []byte {
	source, _, err := image.Decode(bytes.NewReader(data))
	check(err)
	var made image.Image = source
	if wanted.Fit == "cover" {
		made = imaging.Fill(source, wanted.Width, wanted.Height, imaging.Center, imaging.Lanczos)
	} else if source.Bounds().Dx() > wanted.Width {
		made = imaging.Resize(source, wanted.Width, 0, imaging.Lanczos)
	}
	var out bytes.Buffer
	check(jpeg.Encode(&out, made, &jpeg.Options{Quality: wanted.Quality}))
	return out.Bytes()
}

// Milliseconds of all threads, the garbage collector's among them.
func cpu() float64 {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e6
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
