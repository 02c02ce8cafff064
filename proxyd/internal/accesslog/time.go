package accesslog

import (
	"strconv"
	"strings"
	"time"
)

// timeFormat is a compiled strftime format, in UTC. Fractions of a second are the only parts that change within one.
type timeFormat struct {
	parts []timePart
	bytes int // the most that it renders to
}

type timePart struct {
	text   string // literal, when conversion is 0
	conv   byte
	digits int // of a fraction
}

// clockSlot is one worker's rendering of one format for one second.
type clockSlot struct {
	format *timeFormat
	second int64
	text   []byte
	holes  []hole
}

// hole is where digits of the fraction go.
type hole struct{ at, digits int }

// rfc3339 is START_TIME without a format: Envoy's 2018-06-22T16:13:45.123Z.
const rfc3339 = "%Y-%m-%dT%H:%M:%S.%3fZ"

// maxField bounds what one conversion renders to: %c is the longest.
const maxField = 40

func compileTime(format string) *timeFormat {
	if format == "" {
		format = rfc3339
	}
	f := &timeFormat{}
	literal := func(s string) {
		if n := len(f.parts); n > 0 && f.parts[n-1].conv == 0 {
			f.parts[n-1].text += s
		} else {
			f.parts = append(f.parts, timePart{text: s})
		}
		f.bytes += len(s)
	}
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			// A quote would end the JSON string that a lone operator is in.
			if c := format[i]; c == '"' || c == '\\' || c < ' ' || c >= 0x7f {
				literal("_")
			} else {
				literal(format[i : i+1])
			}
			continue
		}
		i++
		switch c := format[i]; {
		case c == '%':
			literal("%")
		case c >= '1' && c <= '9':
			i++ // the f
			f.parts = append(f.parts, timePart{conv: 'f', digits: int(c - '0')})
			f.bytes += 9
		case c == 'f':
			f.parts = append(f.parts, timePart{conv: 'f', digits: 9})
			f.bytes += 9
		default:
			f.parts = append(f.parts, timePart{conv: c})
			f.bytes += maxField
		}
	}
	return f
}

// append renders the time, given in nanoseconds since 1970. The slot remembers the second.
func (f *timeFormat) append(dst []byte, ns int64, slot *clockSlot) []byte {
	second := ns / 1e9
	if slot.format != f || slot.second != second {
		f.render(slot, second)
	}
	at := len(dst)
	dst = append(dst, slot.text...)
	for _, h := range slot.holes {
		rest := ns % 1e9
		for n := 9; n > h.digits; n-- {
			rest /= 10
		}
		for i := h.digits - 1; i >= 0; i-- {
			dst[at+h.at+i] = byte('0' + rest%10)
			rest /= 10
		}
	}
	return dst
}

// render is done once a second and worker.
func (f *timeFormat) render(slot *clockSlot, second int64) {
	slot.format, slot.second = f, second
	slot.holes = slot.holes[:0]
	t := time.Unix(second, 0).UTC()
	b := slot.text[:0]
	for _, p := range f.parts {
		switch {
		case p.conv == 0:
			b = append(b, p.text...)
		case p.conv == 'f':
			slot.holes = append(slot.holes, hole{len(b), p.digits})
			b = append(b, "000000000"[:p.digits]...)
		default:
			b = appendConversion(b, t, p.conv)
		}
	}
	slot.text = b
}

// layouts are the conversions of strftime(3), in the C locale, that time.Format has.
var layouts = map[byte]string{
	'a': "Mon", 'A': "Monday", 'b': "Jan", 'B': "January", 'c': "Mon Jan _2 15:04:05 2006", 'd': "02", 'D': "01/02/06", 'e': "_2",
	'F': "2006-01-02", 'h': "Jan", 'H': "15", 'I': "03", 'j': "002", 'm': "01", 'M': "04", 'p': "PM", 'P': "pm",
	'r': "03:04:05 PM", 'R': "15:04", 'S': "05", 'T': "15:04:05", 'x': "01/02/06", 'X': "15:04:05", 'y': "06", 'Y': "2006",
	'z': "-0700", 'Z': "UTC",
}

func appendConversion(b []byte, t time.Time, conversion byte) []byte {
	pad := func(n, width int, with byte) []byte {
		s := strconv.Itoa(n)
		for i := len(s); i < width; i++ {
			b = append(b, with)
		}
		return append(b, s...)
	}
	year, week := t.ISOWeek()
	sunday := int(t.Weekday())
	monday := (sunday + 6) % 7
	switch conversion {
	case 'n', 't': // a line break would end the line early
		return append(b, ' ')
	case 'C':
		return pad(t.Year()/100, 2, '0')
	case 'g':
		return pad(year%100, 2, '0')
	case 'G':
		return pad(year, 4, '0')
	case 'k':
		return pad(t.Hour(), 2, ' ')
	case 'l':
		return pad((t.Hour()+11)%12+1, 2, ' ')
	case 's':
		return strconv.AppendInt(b, t.Unix(), 10)
	case 'u':
		return pad(monday+1, 1, '0')
	case 'w':
		return pad(sunday, 1, '0')
	case 'U':
		return pad((t.YearDay()+6-sunday)/7, 2, '0')
	case 'W':
		return pad((t.YearDay()+6-monday)/7, 2, '0')
	case 'V':
		return pad(week, 2, '0')
	case 'P':
		return append(b, strings.ToLower(t.Format("PM"))...)
	}
	return t.AppendFormat(b, layouts[conversion])
}
