// Draws one board with Grafana's own components: what its panels were answered comes in as window.BOARD.
// It is not Grafana: no variables, links or alerts, and a table is a plain one.
import React, { useLayoutEffect, useMemo, useRef } from 'react';
import { createRoot } from 'react-dom/client';
import {
  applyFieldOverrides, createTheme, dateTime, EventBusSrv, FieldConfigOptionsRegistry, FieldType,
  formattedValueToString, getFieldDisplayValues, LoadingState, standardEditorsRegistry,
  standardFieldConfigEditorRegistry, standardTransformers, standardTransformersRegistry, transformDataFrame,
} from '@grafana/data';
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import { BigValue, GlobalStyles, PanelChrome, PanelContextProvider, ThemeContext, TimeSeries } from '@grafana/ui';

const { board, answers, annotations, from_s, to_s, mode } = window.BOARD;
const WIDTH = 1500, ROW = 36, GAP = 8, LEGEND = { displayMode: 'list', placement: 'bottom', showLegend: true, calcs: [] };
const theme = createTheme({ colors: { mode } });
const at = (s) => dateTime(s * 1000);
const timeRange = { from: at(from_s), to: at(to_s), raw: { from: at(from_s), to: at(to_s) } };
const asWritten = (text) => text;

const option = (path, isCustom) => ({
  id: isCustom ? `custom.${path}` : path, path, name: path, isCustom, settings: {},
  editor: () => null, override: () => null, process: (value) => value, shouldApply: () => true, getItemsCount: () => 0,
});
const STANDARD = 'color decimals displayName mappings max min noValue thresholds unit'.split(' ').map((n) => option(n, false));
const CUSTOM = ('axisPlacement axisSoftMax drawStyle fillOpacity hideFrom lineStyle lineWidth pointSize scaleDistribution showPoints '
  + 'spanNulls stacking').split(' ').map((n) => option(n, true));
const fieldConfigRegistry = new FieldConfigOptionsRegistry();
[...STANDARD, ...CUSTOM].forEach((one) => fieldConfigRegistry.register(one));
standardFieldConfigEditorRegistry.setInit(() => STANDARD);
standardEditorsRegistry.setInit(() => []);
const byId = new Map(Object.values(standardTransformers).map((one) => [one.id, one]));
standardTransformersRegistry.setInit(() => [...byId.values()].map((one) => (
  { id: one.id, name: one.name, editor: () => null, transformation: async () => one })));

const named = (legend, labels) => (legend === '__auto' ? Object.values(labels).join(' ') || 'value'
  : legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? ''));

function lines({ refId, legend, series }) {
  return series.map(({ metric, values }) => ({
    refId, length: values.length,
    fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: values.map(([s]) => s * 1000) },
      { name: 'Value', type: FieldType.number, labels: metric, config: { displayNameFromDS: named(legend, metric) },
        values: values.map(([, value]) => (value === null ? null : +value)) },
    ],
  }));
}

function table({ refId, series }) {
  const labels = [...new Set(series.flatMap(({ metric }) => Object.keys(metric)))];
  const last = series.map(({ values }) => values[values.length - 1]);
  return [{
    refId, length: series.length,
    fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: last.map(([s]) => s * 1000) },
      ...labels.map((name) => ({ name, type: FieldType.string, config: {}, values: series.map(({ metric }) => metric[name] ?? '') })),
      { name: `Value #${refId}`, type: FieldType.number, config: {}, values: last.map(([, value]) => +value) },
    ],
  }];
}

function configured(panel, data) {
  const custom = { hideFrom: { viz: false, legend: false, tooltip: false }, pointSize: 5, scaleDistribution: { type: 'linear' } };
  const { defaults, overrides } = panel.fieldConfig;
  const fieldConfig = { defaults: { ...defaults, custom: { ...custom, ...defaults.custom } }, overrides };
  return applyFieldOverrides({ data, fieldConfig, fieldConfigRegistry, replaceVariables: asWritten, theme, timeZone: 'utc' });
}

function Marks({ children }) {
  const box = useRef(null);
  useLayoutEffect(() => {
    const draw = () => box.current?.querySelectorAll('.u-over').forEach((over) => annotations.forEach(({ time_s, colour }) => {
      const line = document.createElement('div');
      const left = ((time_s - from_s) / (to_s - from_s)) * 100;
      line.style = `position:absolute;top:0;bottom:0;left:${left}%;border-left:1px dashed ${theme.visualization.getColorByName(colour)};opacity:.7`;
      over.appendChild(line);
    }));
    setTimeout(draw, 500);
  }, []);
  return <div ref={box}>{children}</div>;
}

function Stats({ panel, data, width, height }) {
  const values = getFieldDisplayValues({
    fieldConfig: { defaults: {}, overrides: [] }, reduceOptions: panel.options.reduceOptions,
    replaceVariables: asWritten, theme, data, sparkline: panel.options.graphMode !== 'none', timeZone: 'utc',
  });
  return <div style={{ display: 'flex' }}>{values.map((one, index) => (
    <BigValue key={index} value={one.display} sparkline={one.sparkline} width={width / values.length} height={height} theme={theme}
      colorMode={panel.options.colorMode} graphMode={panel.options.graphMode} textMode={panel.options.textMode} count={values.length} />
  ))}</div>;
}

function Table({ data: [frame] }) {
  const cell = { padding: '4px 12px 4px 0', textAlign: 'left' };
  return (
    <table style={{ fontSize: 13, borderCollapse: 'collapse' }}>
      <thead><tr>{frame.fields.map((field) => <th key={field.name} style={cell}>{field.config.displayName ?? field.name}</th>)}</tr></thead>
      <tbody>{Array.from({ length: frame.length }, (_, row) => (
        <tr key={row}>{frame.fields.map((field) => (
          <td key={field.name} style={cell}>{field.display ? formattedValueToString(field.display(field.values[row])) : field.values[row]}</td>
        ))}</tr>))}</tbody>
    </table>
  );
}

function Body({ panel, data, width, height }) {
  if (!data.some((frame) => frame.length)) return <div data-empty={panel.title}>{panel.fieldConfig.defaults.noValue}</div>;
  if (panel.type === 'stat') return <Stats panel={panel} data={data} width={width} height={height} />;
  if (panel.type === 'table') return <Table data={data} />;
  return (
    <Marks><TimeSeries frames={data} structureRev={1} width={width} height={height} timeRange={timeRange} timeZone="utc"
      legend={LEGEND} options={panel.options} /></Marks>
  );
}

function Panel({ panel, width, height, data }) {
  const shown = useMemo(() => configured(panel, data), []);
  return (
    <PanelChrome title={panel.title} width={width} height={height} loadingState={LoadingState.Done}>
      {(innerWidth, innerHeight) => <Body panel={panel} data={shown} width={innerWidth} height={innerHeight} />}
    </PanelChrome>
  );
}

function Board({ frames }) {
  const bottom = Math.max(...board.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  const place = ({ x, y, w, h }) => ({
    position: 'absolute', left: (x * WIDTH) / 24, top: y * ROW, width: (w * WIDTH) / 24 - GAP, height: h * ROW - GAP,
  });
  return (
    <div style={{ padding: 10, color: theme.colors.text.primary, background: theme.colors.background.canvas }}>
      <h3>{board.title}</h3>
      <div style={{ position: 'relative', width: WIDTH, height: bottom * ROW }}>{board.panels.map((panel) => {
        const box = place(panel.gridPos);
        return (
          <div key={panel.id} style={box}>{panel.type === 'row' ? <h5 style={{ paddingTop: 8 }}>{panel.title}</h5>
            : <Panel panel={panel} width={box.width} height={box.height} data={frames[panel.id]} />}</div>
        );
      })}</div>
    </div>
  );
}

async function main() {
  // the components measure text in this font: in another one the labels would not fit
  await Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 12px Inter`)));
  const frames = {};
  for (const panel of board.panels.filter(({ type }) => type !== 'row')) {
    const raw = (answers[panel.id] ?? []).flatMap(panel.type === 'table' ? table : lines);
    frames[panel.id] = panel.transformations ? await transformDataFrame(panel.transformations, raw).toPromise() : raw;
  }
  document.body.style.background = theme.colors.background.canvas;
  createRoot(document.getElementById('board')).render(
    <ThemeContext.Provider value={theme}><GlobalStyles />
      <PanelContextProvider value={{ eventBus: new EventBusSrv(), eventsScope: 'global', sync: () => 0, canAddAnnotations: () => false }}>
        <Board frames={frames} />
      </PanelContextProvider>
    </ThemeContext.Provider>,
  );
}

main();
