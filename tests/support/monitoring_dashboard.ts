// A dashboard as Grafana's own types have it, stricter where they leave things open: a panel's options
// and fields are those of its plugin, queries are Prometheus', and nothing goes without a description.
import type {
  Dashboard,
  DataSourceRef,
  FieldConfig,
  FieldConfigSource,
  Panel,
  RowPanel,
} from '@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as stateTimeline from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeSeries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// JSON has the values of enumerations, not their names.
type Plain<T> = T extends string
  ? `${T}`
  : T extends readonly (infer U)[]
    ? Plain<U>[]
    : T extends object
      ? { [K in keyof T]: Plain<T[K]> }
      : T;

interface Query {
  refId: string;
  datasource: DataSourceRef;
  expr: string;
  legendFormat?: string;
  instant?: boolean;
  range?: boolean;
  format?: 'time_series' | 'table' | 'heatmap';
}

type Told = 'id' | 'title' | 'description' | 'gridPos' | 'datasource';

type Typed<Type extends string, Options, Custom> = Required<Pick<Panel, Told>> &
  Plain<Omit<Panel, Told | 'type' | 'options' | 'fieldConfig' | 'targets'>> & {
    type: Type;
    targets: Query[];
    options: Plain<Options>;
    fieldConfig: {
      defaults: Plain<Omit<FieldConfig, 'custom'>> & { custom?: Plain<Partial<Custom>> };
      overrides: Plain<FieldConfigSource['overrides']>;
    };
  };

type AnyPanel =
  | Plain<RowPanel>
  | Typed<'stat', stat.Options, never>
  | Typed<'state-timeline', stateTimeline.Options, stateTimeline.FieldConfig>
  | Typed<'table', table.Options, table.FieldConfig>
  | Typed<'timeseries', timeSeries.Options, timeSeries.FieldConfig>;

type Checked = Plain<Omit<Dashboard, 'panels'>> & { uid: string; title: string; panels: AnyPanel[] };

export const dashboard: Checked =
