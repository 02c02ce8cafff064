package http2frame

import "encoding/binary"

// SettingID is the identifier of a setting.
type SettingID uint16

// The settings of RFC 9113 6.5.2 and RFC 8441.
const (
	HeaderTableSize       SettingID = 1
	EnablePush            SettingID = 2
	MaxConcurrentStreams  SettingID = 3
	InitialWindowSize     SettingID = 4
	MaxFrameSizeSetting   SettingID = 5
	MaxHeaderListSize     SettingID = 6
	EnableConnectProtocol SettingID = 8
)

// Setting is one parameter of a SETTINGS frame.
type Setting struct {
	ID    SettingID
	Value uint32
}

// settingLen is the length of a setting on the wire.
const settingLen = 6

// NumSettings is the number of settings in the payload of a SETTINGS frame that Check accepted.
func NumSettings(p []byte) int { return len(p) / settingLen }

// SettingAt is the setting at position i. They apply in order; one that is not known is ignored.
func SettingAt(p []byte, i int) Setting {
	p = p[i*settingLen:]
	return Setting{SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])}
}

// Check says whether a peer may send the setting. fromServer: a server may not allow us to push.
func (s Setting) Check(fromServer bool) *Error {
	switch s.ID {
	case EnablePush:
		if s.Value > 1 || (fromServer && s.Value != 0) {
			return errSetting
		}
	case EnableConnectProtocol:
		if s.Value > 1 {
			return errSetting
		}
	case InitialWindowSize:
		if s.Value > MaxWindow {
			return errWindowSetting
		}
	case MaxFrameSizeSetting:
		if s.Value < DefaultMaxFrameSize || s.Value > MaxFrameSize {
			return errSetting
		}
	}
	return nil
}
